-- Compare and append: the fence between relays, and the bookmark of each.
-- KEYS[1]  the stream
-- ARGV[1]  the id that the caller believes to be the stream's last
-- ARGV[2]  the event name, the same for every entry
-- then six per entry: stream id, outbox id, key, payload, headers, at
-- Appends only if the belief holds. Returns the stream's last id as it is afterwards.
local last = '0-0'
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      last = info[i + 1]
      break
    end
  end
end
if last ~= ARGV[1] then
  return last
end
for i = 3, #ARGV, 6 do
  last = redis.call('XADD', KEYS[1], ARGV[i], 'id', ARGV[i + 1], 'name', ARGV[2], 'key', ARGV[i + 2],
    'payload', ARGV[i + 3], 'headers', ARGV[i + 4], 'at', ARGV[i + 5])
end
return last
