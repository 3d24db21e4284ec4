-- planner, ttl_ms -> fencing token | nil
local planner, ttl_ms = unpack(ARGV)
allow_when_full()
local leader = redis.call('GET', LEADER)
if leader and leader ~= planner then return false end
if redis.call('GET', LED_BY) ~= planner or redis.call('EXISTS', EPOCH) == 0 then
  -- After a loss of data the tokens start above those given before.
  local time = redis.call('TIME')
  redis.call('SET', EPOCH, string.format('%d%06d', time[1], time[2]), 'NX')
  redis.call('INCR', EPOCH)
  redis.call('SET', LED_BY, planner)
end
redis.call('SET', LEADER, planner, 'PX', ttl_ms)
return tonumber(redis.call('GET', EPOCH))
