-- Each request carries a token of its own. With BENCH_VERIFY=1 every answer must be 200 and return a token that is out.
local verify = os.getenv("BENCH_VERIFY") == "1"
local threads, serial, before, out = {}, 0, "", {}

function setup(thread) table.insert(threads, thread) end

function init(args)
  math.randomseed(os.time())
  run = string.format("%08x", math.random(0, 0x7fffffff))
  wrong, first_wrong = 0, ""
  local headers = { ["Content-Type"] = "application/json" }
  if os.getenv("BENCH_AUTHORIZATION") then headers["Authorization"] = os.getenv("BENCH_AUTHORIZATION") end
  local whole = wrk.format("POST", wrk.path, headers, '{"token":"0000000000000000"}')
  before = whole:sub(1, -19)
  if verify then
    response = function(status, _, body)
      local token = body:match('"token": ?"(%x+)"')
      if status ~= 200 or not token or not out[token] then
        wrong = wrong + 1
        if first_wrong == "" then first_wrong = status .. " " .. body:sub(1, 200) end
      else out[token] = nil end
    end
  end
end

function request()
  serial = serial + 1
  local token = run .. string.format("%08x", serial)
  if verify then out[token] = true end
  return before .. token .. '"}'
end

local function quoted(text) return '"' .. text:gsub('[%c"\\]', " ") .. '"' end

function done(summary, latency)
  local bad, said = 0, ""
  for _, thread in ipairs(threads) do
    bad = bad + (thread:get("wrong") or 0)
    if said == "" then said = thread:get("first_wrong") or "" end
  end
  local errors = summary.errors
  print(string.format('RESULT {"requests":%d,"seconds":%f,"refused":%d,"broken":%d,"wrong":%d,"first_wrong":%s,"p50_ms":%f,"p99_ms":%f}',
    summary.requests, summary.duration / 1e6, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    bad, quoted(said), latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
