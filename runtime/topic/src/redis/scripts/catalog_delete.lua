local node, fresh, key, expect, seen = take(), take(), take(), num(), take()
local found = redis.call('HGET', KEYS[1], key)
local version = found and struct.unpack('<I8', found) or 0
if version ~= expect or moved(seen) then return {'NO', int(version)} end
if found then
  redis.call('HDEL', KEYS[1], key)
  redis.call('SET', KEYS[1] .. ':n', fresh)
  redis.call('PUBLISH', KEYS[1] .. ':bell', node)
end
return {'OK', '0'}
