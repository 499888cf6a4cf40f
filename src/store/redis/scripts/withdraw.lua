-- withdraw: undoes an operation whose reply never came, and prevents it from happening late. ARGV[5..]: slot and
-- number of the operation, the key of the job that it submits (or empty), then slots that were withdrawn so long ago
-- that nothing can arrive over them any more: their memos are removed.
-- Replies `withdrawn`. May happen twice.
local slot, number = ARGV[5], ARGV[6]
local last, packed = memo(slot)
call('UNLINK', P .. 'b:' .. PROC .. ':' .. slot .. ':' .. number)
if last < tonumber(number) then
    call('HSET', P .. 'm:' .. PROC, slot, number .. '|' .. cmsgpack.pack({'withdrawn'}))
elseif last == tonumber(number) then
    local was = cmsgpack.unpack(packed)
    local id = was[2]
    call('HSET', P .. 'm:' .. PROC, slot, number .. '|' .. cmsgpack.pack({'withdrawn'}))
    local j = was[1] == 'new' and job(id, 's', 'o', 'b', 'l', 'w', 'i', 'K')
    -- Another request may have found this job by its key: then the job and its key stay.
    if j and not j.K then
        if j.s == 'q' then
            call('ZREM', P .. 'l:' .. j.l, id)
            call('ZREM', P .. 'p:' .. j.o, id)
            add('waiting', -1)
            remove(id, j.b)
        elseif j.s then
            -- The job has already begun: its result is dropped.
            call('ZREM', P .. 'p:' .. j.o, id)
            call('HSET', P .. 'j:' .. id, 'u', '1')
            if j.s == 'd' then
                call('ZREM', P .. 'd:' .. j.o, id)
                call('ZREM', P .. 'e', id)
                remove(id, j.b)
            end
        end
        if j.o and ARGV[7] ~= '' then
            local known = call('HGET', P .. 'k:' .. j.o, ARGV[7])
            if known and string.match(known, ' (%d+)$') == id then drop_key(j.o, ARGV[7]) end
        end
    elseif was[1] == 'done' then
        local j = job(id, 's', 'o', 'i', 'F', 'f', 'fa', 'b')
        if j.s == 'v' and j.F == was[3] then restore(id, j) end
    end
end
for n = 8, #ARGV do call('HDEL', P .. 'm:' .. PROC, ARGV[n]) end
return {'withdrawn'}
