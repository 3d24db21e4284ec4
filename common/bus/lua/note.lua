-- token, id, attempt, decision, deferred_s or '', decided -> 1 | 0
local token, id, attempt, decision, deferred_s, decided = unpack(ARGV)
if redis.call('GET', EPOCH) ~= token then return fenced() end
local record = load(id)
if not record or record.state ~= 'queued' or record.attempt ~= attempt then return 0 end
allow_when_full()
redis.call('HSET', RECORD .. id, 'decision', decision)
if deferred_s ~= '' then redis.call('HSETNX', RECORD .. id, 'deferred_s', deferred_s) end
tell_api(record.reply_to, 'decided', decided)
return 1
