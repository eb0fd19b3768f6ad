/**
 * W3C Trace Context, as it stands in the headers `traceparent` and `tracestate` of a message. Pure.
 *
 * What is malformed counts as not there: a message is never refused for it.
 */

/** What a message says about the trace that it belongs to. */
export interface TraceHeaders {
  readonly traceparent: string
  readonly tracestate: string | undefined
}

/** The span that sent a message. */
export interface TraceParent {
  readonly traceId: string
  readonly spanId: string
  readonly sampled: boolean
}

const parentPattern = /^([\da-f]{2})-([\da-f]{32})-([\da-f]{16})-([\da-f]{2})(?:-.*)?$/
const zeros = /^0+$/

/** Length of a `traceparent` of version 00, which has nothing after its flags; a later version may. */
const versionZeroLength = 55

/** Reads a `traceparent` of any version; `undefined` where it is malformed. */
export const parseParent = (text: string): TraceParent | undefined => {
  const match = parentPattern.exec(text)
  if (match === null) return undefined
  const [, version, traceId, spanId, flags] = match
  if (version === "ff" || (version === "00" && text.length !== versionZeroLength)) return undefined
  if (zeros.test(traceId!) || zeros.test(spanId!)) return undefined
  return { traceId: traceId!, spanId: spanId!, sampled: (Number.parseInt(flags!, 16) & 1) === 1 }
}

export const formatParent = ({ traceId, spanId, sampled }: TraceParent): string =>
  `00-${traceId}-${spanId}-${sampled ? "01" : "00"}`

/** Longest `tracestate` that is passed on, in characters: what the specification asks for. */
export const stateLengthMax = 512

const stateMembersMax = 32
const stateMember = /^([a-z\d][a-z\d_\-*/@]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]$/

/** The optional white space around a member: spaces and tabs, and nothing else that `trim` would take. */
const aroundMember = /^[ \t]+|[ \t]+$/g

/** A `tracestate` that may be passed on, its members as they were checked; `undefined` where it is malformed or too long. */
export const checkedState = (text: string | undefined): string | undefined => {
  if (text === undefined || text.length > stateLengthMax) return undefined
  const members = new Map<string, string>()
  for (const part of text.split(",")) {
    const member = part.replace(aroundMember, "")
    if (member === "") continue
    const key = stateMember.exec(member)?.[1]
    if (key === undefined || members.has(key)) return undefined
    members.set(key, member)
  }
  return members.size === 0 || members.size > stateMembersMax ? undefined : [...members.values()].join(",")
}
