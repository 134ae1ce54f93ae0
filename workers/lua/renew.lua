-- Renews the lease of entries that a worker still holds.
-- KEYS[1] stream. ARGV[1] group, ARGV[2] consumer, ARGV[3] for how many ms they count as idle, ARGV[4...] entry ids.
-- Returns the ids that another consumer owns now, those that the stream was trimmed past (XCLAIM would make Redis forget
-- that these are pending), and those that are pending no more: taken over and acknowledged, or forgotten by Redis; only
-- PostgreSQL knows which. JUSTID keeps the delivery count.
local function parse(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local first_ms, first_seq = math.huge, 0
if first then
  first_ms, first_seq = parse(first[1])
end
local lost, trimmed, gone, mine = {}, {}, {}, {}
for i = 4, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if not pending[1] then
    gone[#gone + 1] = ARGV[i]
  else
    local ms, seq = parse(ARGV[i])
    if pending[1][2] ~= ARGV[2] then
      lost[#lost + 1] = ARGV[i]
    elseif ms < first_ms or (ms == first_ms and seq < first_seq) then
      trimmed[#trimmed + 1] = ARGV[i]
    else
      mine[#mine + 1] = ARGV[i]
    end
  end
end
if #mine > 0 then
  mine[#mine + 1] = 'IDLE'
  mine[#mine + 1] = ARGV[3]
  mine[#mine + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine))
end
return {lost, trimmed, gone}
