-- Holds a life still for a backup, or goes on holding it. The first time it tells all that is small: topics with their counters, their
-- partitions, removed stages, subjects.
local token, ttl, first = take(), num(), take() == '1'
local m = redis.call('HMGET', KEYS[1], 'id', 'gone', 'held')
if m[2] then return {'GONE'} end
if not m[1] then return {'NONE'} end
if first then
  if m[3] and string.sub(m[3], 9) ~= token and struct.unpack('<I8', m[3]) > now then return {'BUSY'} end
elseif not m[3] or string.sub(m[3], 9) ~= token then
  return {'STALE'}
end
redis.call('HSET', KEYS[1], 'held', struct.pack('<I8', now + ttl) .. token)
if not first then return {'OK'} end
local topics = {}
for _, stage in ipairs(redis.call('SMEMBERS', T .. ':topics')) do
  local fields, parts = redis.call('HGETALL', T .. ':t:' .. stage), {}
  local layout = ''
  for i = 1, #fields, 2 do
    local p = string.match(fields[i], '^p(%d+)$')
    if p then
      local _, appended = struct.unpack('<I8I8', fields[i + 1])
      local v = redis.call('HMGET', T .. ':p:' .. stage .. ':' .. p, 'ce', 'ci', 'rn', 'un', 'seal', 'mu', 'mc')
      parts[#parts + 1] = {p, int(appended), v[1] or '0', v[2] or '0', v[3] or '0', v[4] or '0', v[5] or '', v[6] or '', v[7] or '0'}
    elseif fields[i] == 'l' then
      layout = fields[i + 1]
    end
  end
  topics[#topics + 1] = {stage, layout, parts}
end
return {'OK', topics, redis.call('HGETALL', T .. ':x'), redis.call('SMEMBERS', T .. ':subjects')}
