local hs = { status = "Progressing", message = "Waiting for mail-token-broker" }

if obj.metadata.deletionTimestamp ~= nil then
  hs.message = "Waiting for mail-token-broker to remove the finalizers"
  return hs
end

-- A suspended credential needs no broker to be shown as suspended.
if obj.spec.suspend == true then
  hs.status = "Suspended"
  hs.message = "spec.suspend is true"
  return hs
end

local status = obj.status
if status == nil or status.conditions == nil then
  return hs
end
if obj.metadata.generation ~= nil and status.observedGeneration ~= obj.metadata.generation then
  return hs
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local ready = conditions["Ready"]
local stalled = conditions["Stalled"]
local renewed = conditions["Renewed"]
local mailbox = conditions["MailboxAuthorized"]

if ready == nil then
  return hs
end
hs.message = ready.message

if ready.status == "True" then
  -- With spec.probe, the broker logs in at the mail server.
  if mailbox ~= nil and mailbox.status == "False" then
    hs.status = "Degraded"
    hs.message = mailbox.message
    return hs
  end
  -- A failed renewal does not stop mail while the token is valid.
  hs.status = "Healthy"
  if renewed ~= nil and renewed.status == "False" then
    hs.message = ready.message .. ". The last renewal failed: " .. renewed.message
  end
  return hs
end

if stalled ~= nil and stalled.status == "True" then
  hs.status = "Degraded"
  hs.message = stalled.message
  return hs
end

-- A user must sign in, and the code is still valid.
if ready.reason == "AuthorizationRequired" then
  hs.status = "Suspended"
  return hs
end

-- The mail server refuses an expired token, also while the broker retries.
if ready.reason == "Expired" then
  hs.status = "Degraded"
end
return hs
