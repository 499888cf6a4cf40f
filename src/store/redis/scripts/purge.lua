-- purge: removes what forget_all left, at most 512 jobs or keys.
-- Replies `more` or `empty`.
local name = call('LINDEX', P .. 'z', 0)
if not name then return reply({'empty'}) end

local function answer()
    return reply({call('EXISTS', P .. 'z') == 1 and 'more' or 'empty'})
end

local keys, owner = string.match(name, '^(%S+) (.*)$')
if keys then
    for _, key in ipairs(call('HRANDFIELD', P .. keys, 512)) do
        call('HDEL', P .. keys, key)
        -- The key may have been used again since.
        if call('HEXISTS', P .. 'k:' .. owner, key) == 0 then call('ZREM', P .. 'ke', owner .. '\n' .. key) end
    end
    if call('EXISTS', P .. keys) == 0 then call('LREM', P .. 'z', 1, name) end
    return answer()
end

local popped = call('ZPOPMIN', P .. name, 512)
for n = 1, #popped, 2 do
    local id = popped[n]
    local j = job(id, 's', 'b', 'i', 'w')
    if j.s == 'd' or j.s == 'v' then
        if j.s == 'v' then call('SREM', P .. 'dlv:' .. j.i, id) end
        call('ZREM', P .. 'e', id)
        remove(id, j.b)
    elseif j.s == 'c' then
        drop_log(id)
    elseif j.s then
        call('HSET', P .. 'j:' .. id, 'u', '1')
        ring(id, j)
    end
end
if #popped < 1024 then
    call('UNLINK', P .. name)
    call('LREM', P .. 'z', 1, name)
end
return answer()
