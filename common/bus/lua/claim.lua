-- planner, what tiers share, then tier, own room and most of each -> (tier and claims of each that has any), busy-until by worker
local planner, shared = ARGV[1], tonumber(ARGV[2])
if redis.call('GET', LED_BY) ~= planner then return fenced() end

local function read(stream, count)
  return redis.pcall('XREADGROUP', 'GROUP', PLANNERS, planner, 'COUNT', count, 'STREAMS', stream, '>')
end

local found = {}
for i = 3, #ARGV, 3 do
  local tier, own = ARGV[i], tonumber(ARGV[i + 1])
  local count = math.min(tonumber(ARGV[i + 2]), own + shared)
  local stream = REQUESTS .. tier
  if count > 0 and redis.call('EXISTS', stream) == 1 then
    if #found == 0 then allow_when_full() end
    local reply = read(stream, count)
    if reply and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
      redis.call('XGROUP', 'CREATE', stream, PLANNERS, 0)
      reply = read(stream, count)
    end
    if reply and reply.err then return reply end
    if reply then
      shared = shared - math.max(0, #reply[1][2] - own)
      found[#found + 1] = tier
      found[#found + 1] = claims(tier, reply[1][2])
    end
  end
end
return {found, redis.call('HGETALL', BUSY)}
