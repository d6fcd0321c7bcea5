local node, fresh, key, expect, seen, value = take(), num(), take(), num(), take(), take()
local found = redis.call('HGET', KEYS[1], key)
local version = found and struct.unpack('<I8', found) or 0
if version ~= expect or moved(seen) then return {'NO', int(version)} end
redis.call('HSET', KEYS[1], key, struct.pack('<I8', version + 1) .. value)
wrote(node, fresh, 0)
return {'OK', int(version + 1)}
