-- token, worker, max_deaths, count, end -> how many are left, ids that were put back, by arrival
local token, worker, max_deaths, count, end_blob = unpack(ARGV)
if redis.call('GET', EPOCH) ~= token then return fenced() end
allow_when_full()
redis.call('SREM', WORKERS, worker)
redis.call('HDEL', BUSY, worker)
redis.call('SET', BURIED .. worker, 1, 'EX', BURIED_TTL_S)
redis.call('DEL', WORKER .. worker, CONTROL .. worker, PREFILL .. worker, DECODE .. worker)
local records, requeued = {}, {}
for _, id in ipairs(redis.call('SPOP', INFLIGHT .. worker, count)) do
  local record = load(id)
  if record and record.state == 'running' and record.holder == worker then records[#records + 1] = record end
end
table.sort(records, function(a, b)
  local first, second = tonumber(a.arrival), tonumber(b.arrival)
  if first ~= second then return first < second end
  return a.id < b.id
end)
for _, record in ipairs(records) do
  if redis.call('HINCRBY', RECORD .. record.id, 'deaths', 1) >= tonumber(max_deaths) then
    give_up(record, end_blob, 'worker_died')
  else
    put_back(record)
    requeued[#requeued + 1] = record.id
  end
end
return {redis.call('SCARD', INFLIGHT .. worker), requeued}
