local key, expect = take(), num()
local found = redis.call('HGET', KEYS[1], key)
local version = found and struct.unpack('<I8', found) or 0
if version ~= expect then return {'NO', int(version)} end
if found then redis.call('HDEL', KEYS[1], key) end
return {'OK', '0'}
