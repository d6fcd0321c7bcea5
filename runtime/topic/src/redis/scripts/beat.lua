-- A node says that it is there, and learns who else is. A field a node: until when it counts, and its record.
local node, ttl, most, record = take(), num(), num(), take()
local key = KEYS[1] .. ':nodes'
local out, known = {}, false
local stored = redis.call('HGETALL', key)
for i = 1, #stored, 2 do
  local other = stored[i]
  local left = struct.unpack('<I8', stored[i + 1]) - now
  if other == node then
    known = true
  elseif left <= 0 then
    redis.call('HDEL', key, other)
  else
    out[#out + 1] = {other, int(left), string.sub(stored[i + 1], 9)}
  end
end
if not known and #out >= most then return {'MANY'} end
redis.call('HSET', key, node, struct.pack('<I8', now + ttl) .. record)
out[#out + 1] = {node, int(ttl), record}
return {'OK', int(now), redis.call('GET', KEYS[1] .. ':n') or '0', out}
