-- worker, busy_until_s, then for each frame: id, attempt, position, time_s, tokens, end's state or '', end, frame, 2 * notes, notes...
-- -> for each frame 1 | 0
local worker, busy_until_s, at = ARGV[1], ARGV[2], 3
local accepted, progress, apis, replies = {}, {}, {}, {}
allow_when_full()

local function report(id, attempt, count, has_ended, time_s)
  progress[#progress + 1] = table.concat({attempt, count, has_ended and 1 or 0, time_s, id}, ':')
  progress[#progress + 1] = worker
end

local function accept(id, attempt, position, time_s, tokens, state, end_blob, frame, notes_from, notes)
  local key = RECORD .. id
  local record = redis.call('HMGET', key, 'state', 'attempt', 'holder', 'reply_to', 'reported')
  if record[1] ~= 'running' or record[2] ~= attempt or record[3] ~= worker then return 0 end
  local stored, skip = generated(id), 0
  skip = stored - tonumber(position)
  if skip < 0 then
    report(id, attempt, stored, true, time_s)
    put_back(load(id))
    return 0
  end
  if skip > 0 then tokens = string.sub(tokens, skip * 4 + 1) end
  if skip > 0 and tokens == '' and state == '' then return 1 end
  local api = record[4]
  if api and api ~= '' then
    if not replies[api] then
      apis[#apis + 1] = api
      replies[api] = {}
    end
    local fields = replies[api]
    fields[#fields + 1] = 'frame:' .. skip
    fields[#fields + 1] = frame
  end
  if notes > 0 then redis.call('HSET', key, unpack(ARGV, notes_from, notes_from + notes - 1)) end
  local count = stored
  if tokens ~= '' then count = redis.call('APPEND', TOKENS .. id, tokens) / 4 end
  local first = tokens ~= '' and tonumber(record[5] or 0) < tonumber(attempt)
  if first then redis.call('HSET', key, 'reported', attempt) end
  if first or state ~= '' then report(id, attempt, count, state ~= '', time_s) end
  if state ~= '' then settle(id, worker, state, end_blob) end
  return 1
end

while ARGV[at] do
  local id, attempt, position, time_s, tokens, state, end_blob, frame, notes = unpack(ARGV, at, at + 8)
  notes = tonumber(notes)
  accepted[#accepted + 1] = accept(id, attempt, position, time_s, tokens, state, end_blob, frame, at + 9, notes)
  at = at + 9 + notes
end
local has_any = false
for _, one in ipairs(accepted) do has_any = has_any or one == 1 end
if has_any and tonumber(busy_until_s) > 0 then redis.call('HSET', BUSY, worker, busy_until_s) end
for _, api in ipairs(apis) do tell_api(api, unpack(replies[api])) end
if #progress > 0 then redis.call('XADD', PROGRESS, 'MAXLEN', '~', LOG_BOUND, '*', unpack(progress)) end
return accepted
