-- Renews the lease of entries that a worker still holds.
-- KEYS[1] stream. ARGV[1] group, ARGV[2] consumer, ARGV[3...] entry ids.
-- Returns the ids that another consumer owns now. An entry that is no longer pending is gone, not lost. JUSTID keeps the
-- delivery count.
local lost, mine = {}, {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if pending[1] then
    if pending[1][2] == ARGV[2] then mine[#mine + 1] = ARGV[i] else lost[#lost + 1] = ARGV[i] end
  end
end
if #mine > 0 then
  mine[#mine + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine))
end
return lost
