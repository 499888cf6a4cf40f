-- beat: an incarnation lives on for a lease. ARGV[5..]: incarnation, lease in microseconds, then `ID LINE` for each
-- job whose progress changed.
-- Replies `ok BYTES LOGBYTES WAITING`, then the ids of its jobs that must be stopped; or `fenced`. May happen twice.
local inc, lease = ARGV[5], tonumber(ARGV[6])
if not is_living(inc) then return {'fenced'} end
call('ZADD', P .. 'i', text(now + lease), inc)
-- A time without a beat, or a clock that jumped, does not age anything.
local gap = now - meta('beat')
if meta('beat') ~= 0 and (gap > lease or gap < 0) then add('off', gap) end
call('HSET', META, 'beat', text(now), 'lease', text(lease))
for n = 7, #ARGV, 2 do
    if call('HGET', P .. 'j:' .. ARGV[n], 'i') == inc then call('HSET', P .. 'j:' .. ARGV[n], 'p', ARGV[n + 1]) end
end
call('PUBLISH', P .. 'c:' .. PROC, 'tick')
local answer = {'ok', text(meta('bytes')), text(meta('logbytes')), text(meta('waiting'))}
for _, id in ipairs(call('SMEMBERS', P .. 'x:' .. inc)) do answer[#answer + 1] = id end
return answer
