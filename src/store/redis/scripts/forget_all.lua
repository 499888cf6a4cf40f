-- forget_all: forgets all jobs of an owner at once, and their keys: from now on, none up to the last id can be asked
-- for. The room that they take is purged later: `z` has the names of the lists, and that of the keys with their owner.
-- ARGV[5]: owner.
-- Replies `forgotten`.
local owner = ARGV[5]
call('HSET', P .. 'hz', owner, call('HGET', META, 'last') or '0')
for _, list in ipairs({'p:', 'd:', 'v:', 'lg:'}) do
    if call('EXISTS', P .. list .. owner) == 1 then
        local name = 'z:' .. fence()
        call('RENAME', P .. list .. owner, P .. name)
        call('RPUSH', P .. 'z', name)
    end
end
local keys = tonumber(call('HGET', P .. 'kb', owner) or 0)
if call('EXISTS', P .. 'k:' .. owner) == 1 then
    local name = 'z:' .. fence()
    call('RENAME', P .. 'k:' .. owner, P .. name)
    call('RPUSH', P .. 'z', name .. ' ' .. owner)
end
call('HDEL', P .. 'kb', owner)
add('keybytes', -keys)
add('bytes', -keys)
return reply({'forgotten'})
