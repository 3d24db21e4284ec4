-- tiers... -> for each: how many wait, arrival of the first
local found = {}
for i, tier in ipairs(ARGV) do
  local first = redis.call('XRANGE', REQUESTS .. tier, '-', '+', 'COUNT', 1)[1]
  found[i] = {redis.call('XLEN', REQUESTS .. tier), first and first[2][4] or ''}
end
return found
