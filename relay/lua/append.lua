-- Compare and append: the fence between relays, and the bookmark of each.
-- KEYS[1]  the stream
-- ARGV[1]  the id that the caller believes to be the stream's last
-- ARGV[2]  the event name, the same for every entry
-- then six per entry: stream id, outbox id, key, payload, headers, at
-- Appends only if the belief holds. Returns the stream's last id as it is afterwards.
local call, key, argv, name = redis.call, KEYS[1], ARGV, ARGV[2]
local last = '0-0'
if call('EXISTS', key) == 1 then
  local info = call('XINFO', 'STREAM', key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      last = info[i + 1]
      break
    end
  end
end
if last ~= argv[1] then
  return last
end
for i = 3, #argv, 6 do
  last = call('XADD', key, argv[i], 'id', argv[i + 1], 'name', name, 'key', argv[i + 2],
    'payload', argv[i + 3], 'headers', argv[i + 4], 'at', argv[i + 5])
end
return last
