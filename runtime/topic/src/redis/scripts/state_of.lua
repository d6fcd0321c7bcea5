local stage, bucket, key = take(), take(), take()
if gone() then return {'GONE'} end
local blob = redis.call('HGET', T .. ':st:' .. stage .. ':' .. bucket, key) or ''
if string.byte(blob) == 115 then return {'OK', redis.call('HGETALL', T .. ':s:' .. string.sub(blob, 2))} end
return {'OK', blob}
