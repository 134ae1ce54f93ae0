-- Takes a group off a stream if it has not been given all up to a cut, so that the stream may be trimmed there. What it was
-- given stays pending and is finished; it is given nothing more, until its position is set again.
-- KEYS[1]  the stream
-- ARGV[1]  the group
-- ARGV[2]  the cut
-- ARGV[3]  the position that means: away
-- Returns the last id it was given, nothing when it is not behind, and ARGV[3] when that is not known: it was put away
-- before, or somebody destroyed it.
local function parse(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local cut_ms, cut_seq = parse(ARGV[2])
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local fields = {}
  for i = 1, #group, 2 do
    fields[group[i]] = group[i + 1]
  end
  if fields['name'] == ARGV[1] then
    local delivered = fields['last-delivered-id']
    if delivered == ARGV[3] then
      return delivered
    end
    local ms, seq = parse(delivered)
    if ms < cut_ms or (ms == cut_ms and seq < cut_seq) then
      redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[3])
      return delivered
    end
    return ''
  end
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[3])
return ARGV[3]
