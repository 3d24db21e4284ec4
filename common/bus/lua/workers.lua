-- -> for each registered worker: its id, its last heartbeat or ''
local found = {}
for i, worker in ipairs(redis.call('SMEMBERS', WORKERS)) do
  found[i] = {worker, redis.call('GET', WORKER .. worker) or ''}
end
return found
