-- stats: how much the store holds. ARGV[5..]: the name of each lane.
-- Replies bytes, bytes of kept logs, waiting, delayed, those of them that have their answer, done, when the first job
-- was accepted that waits in one of the lanes (or empty), then for each lane how many wait. Changes nothing.
local first
local lanes = {}
for n = 5, #ARGV do
    local id = call('ZRANGE', P .. 'l:' .. ARGV[n], 0, 0)[1]
    if id and (not first or tonumber(id) < tonumber(first)) then first = id end
    lanes[#lanes + 1] = text(call('ZCARD', P .. 'l:' .. ARGV[n]))
end
local asleep = call('ZCARD', P .. 'ws')
local delayed = call('ZCARD', P .. 'w') + asleep
local created = first and job(first, 'c').c or ''
local answer = {text(meta('bytes')), text(meta('logbytes')), text(meta('waiting')), text(delayed), text(asleep),
    text(call('ZCARD', P .. 'e')), created}
for _, waiting in ipairs(lanes) do answer[#answer + 1] = waiting end
return answer
