-- How far a consumer group is, read in one step.
-- KEYS[1]  the stream
-- ARGV[1]  the group
-- Returns the stream's last id, its length, the group's last delivered id (empty without such a group), the group's lowest
-- pending id (empty when nothing is pending) and the id of the last entry that is still there (empty without any).
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {'0-0', 0, '', '', ''}
end
local last, present = '0-0', ''
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    last = info[i + 1]
  elseif info[i] == 'last-entry' and info[i + 1] then
    present = info[i + 1][1]
  end
end
local delivered = ''
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local fields = {}
  for i = 1, #group, 2 do
    fields[group[i]] = group[i + 1]
  end
  if fields['name'] == ARGV[1] then
    delivered = fields['last-delivered-id']
  end
end
local pending = ''
if delivered ~= '' then
  pending = redis.call('XPENDING', KEYS[1], ARGV[1])[2] or ''
end
return {last, redis.call('XLEN', KEYS[1]), delivered, pending, present}
