-- workers to leave out... -> for each other registered worker: its id, its last heartbeat or ''
local skipped, found = {}, {}
for _, worker in ipairs(ARGV) do skipped[worker] = true end
for _, worker in ipairs(redis.call('SMEMBERS', WORKERS)) do
  if not skipped[worker] then found[#found + 1] = {worker, redis.call('GET', WORKER .. worker) or ''} end
end
return found
