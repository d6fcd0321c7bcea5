-- Several records at once, all or none, each as it was expected.
local node, fresh, above = take(), num(), num()
local changes = {}
for i = 1, num() do
  local c = {key = take(), expect = num(), stays = take() == '1'}
  if c.stays then c.value = take() end
  local found = redis.call('HGET', KEYS[1], c.key)
  c.version = found and struct.unpack('<I8', found) or 0
  if c.version ~= c.expect then return {'NO'} end
  changes[i] = c
end
for _, c in ipairs(changes) do
  if c.stays then
    redis.call('HSET', KEYS[1], c.key, struct.pack('<I8', c.version + 1) .. c.value)
  else
    redis.call('HDEL', KEYS[1], c.key)
  end
end
wrote(node, fresh, above)
return {'OK'}
