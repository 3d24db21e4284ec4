-- tier, planner, count -> claims
local tier, planner, count = unpack(ARGV)
if redis.call('GET', LED_BY) ~= planner then return fenced() end
local stream = REQUESTS .. tier
if redis.call('EXISTS', stream) == 0 then return {} end
allow_when_full()
local function read()
  return redis.pcall('XREADGROUP', 'GROUP', PLANNERS, planner, 'COUNT', count, 'STREAMS', stream, '>')
end
local reply = read()
if reply and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
  redis.call('XGROUP', 'CREATE', stream, PLANNERS, 0)
  reply = read()
end
if not reply then return {} end
if reply.err then return reply end
return claims(tier, reply[1][2])
