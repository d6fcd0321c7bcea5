-- Begins a life: the store's identity in its own slot, so that a store that lost it is noticed there.
local id = take()
if gone() then return {'GONE'} end
redis.call('HSETNX', KEYS[1], 'id', id)
return {'OK'}
