-- ids... -> for each: all fields of its record, its tokens
local found = {}
for i, id in ipairs(ARGV) do
  local fields = redis.pcall('HGETALL', RECORD .. id)
  local tokens = redis.pcall('GET', TOKENS .. id)
  if fields.err then fields = {} end
  if type(tokens) == 'table' then tokens = 'corrupt' end
  found[i] = {fields, tokens or ''}
end
return found
