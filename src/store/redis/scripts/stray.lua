-- stray: the lanes in which jobs wait although no living incarnation serves them.
-- Replies for each its name and how many wait. Changes nothing.
local served, answer = {}, {}
for _, inc in ipairs(call('ZRANGE', P .. 'i', 0, -1)) do
    for lane in string.gmatch(call('HGET', P .. 'i:' .. inc, 'lanes') or '', '[^\n]+') do served[lane] = true end
end
for _, lane in ipairs(call('SMEMBERS', P .. 'lanes')) do
    local waiting = call('ZCARD', P .. 'l:' .. lane)
    if waiting > 0 and not served[lane] then
        answer[#answer + 1] = lane
        answer[#answer + 1] = text(waiting)
    end
end
return answer
