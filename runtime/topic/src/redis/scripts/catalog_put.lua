local key, expect, value = take(), num(), take()
local found = redis.call('HGET', KEYS[1], key)
local version = found and struct.unpack('<I8', found) or 0
if version ~= expect then return {'NO', int(version)} end
redis.call('HSET', KEYS[1], key, struct.pack('<I8', version + 1) .. value)
return {'OK', int(version + 1)}
