-- finish: gives a running job its result. ARGV[5..]: incarnation, id, fence, message or spool, its footprint, ending,
-- log, footprint of the log, capacity, whether it must fit (1: an error, for which there is room), footprint and
-- ending of a cancellation, attempts, how much was logged in all.
-- Replies `kept`, `cancelled` (the job has its 410), `dropped` (unwanted), `full` (nothing has changed), `lost` (it
-- does not run under this fence) or `fenced`.
local inc, id, message, spool, footprint, ending = ARGV[5], ARGV[6], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local log, log_size, capacity, is_forced = ARGV[12], ARGV[13], tonumber(ARGV[14]), ARGV[15] == '1'

local function drop(why)
    if spool ~= '' then call('UNLINK', spool) end
    return reply({why})
end

if not is_living(inc) then return drop('fenced') end
local j = job(id, 's', 'F', 'o', 'b', 'base', 'u', 'w', 'x', 'i')
if j.s ~= 'r' or j.F ~= ARGV[7] then return drop('lost') end
local is_cancelled = j.x and not is_forced
if is_cancelled then footprint, ending = ARGV[16], ARGV[17] end
local bytes = j.base + footprint + log_size
local is_wanted = not j.u and not is_gone(j.o, id)
if is_wanted then
    local grown = bytes - j.b
    if grown > 0 then
        make_room(grown, capacity)
        if meta('bytes') + grown > capacity and not is_forced then return drop('full') end
    end
    if spool ~= '' and not is_cancelled and call('EXISTS', spool) == 0 then return reply({'spool'}) end
end
call('SREM', P .. 'run:' .. j.i, id)
call('SREM', P .. 'x:' .. j.i, id)
if is_wanted then
    if is_cancelled then
        if spool ~= '' then call('UNLINK', spool) end
    else
        put(P .. 'r:' .. id, message, spool)
    end
    if log == '' then call('UNLINK', P .. 'g:' .. id) else call('SET', P .. 'g:' .. id, log) end
elseif spool ~= '' then
    call('UNLINK', spool)
end
call('HSET', P .. 'j:' .. id, 'm', ARGV[18], 'lo', ARGV[19])
if not done(id, j, ending, bytes, #log) then return reply({'dropped'}) end
return reply({is_cancelled and 'cancelled' or 'kept'})
