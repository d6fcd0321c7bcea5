local node, fresh, key, expect, seen = take(), num(), take(), num(), take()
local found = redis.call('HGET', KEYS[1], key)
local version = found and struct.unpack('<I8', found) or 0
if version ~= expect or moved(seen) then return {'NO', int(version)} end
if found then
  redis.call('HDEL', KEYS[1], key)
  wrote(node, fresh, 0)
end
return {'OK', '0'}
