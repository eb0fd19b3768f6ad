/**
 * Dead letters: the refused message with its payload, its headers and the reason, on `<dead topic>.<its subject>`.
 *
 * Added headers, before all others: `Nats-Msg-Id`, `Objectlog-Code`, `Objectlog-Reason`, `Objectlog-Subject`,
 * `Objectlog-Seq`, `Objectlog-Timestamp` (nanoseconds). The id is the first: nats-server 2.9 looks for its name wherever it
 * stands, and a reason may begin with it. Original headers follow as `kept` writes them.
 *
 * A message so large that it does not fit with the added headers is kept in parts, `Objectlog-Part: 1/2` and so on. Put
 * together they are a JSON array of [name, values] of the original headers, `Objectlog-Headers-Size` bytes of it, and then
 * the payload.
 *
 * letters/Letter.ts reads them back.
 */
import type { DeadLetter } from "./Broker.ts"
import { blockText, type Headers } from "../nats/headers.ts"
import { kept } from "./keptHeaders.ts"
import type { OriginalRequest } from "./parked.ts"
import type { Message } from "../nats/publish.ts"

/** Longest reason in a header, in characters. */
const reasonMax = 512

/** Room left for the added headers of a part. */
const partOverhead = 2_048

const headerSafe = (text: string): string =>
  text
    .slice(0, reasonMax)
    .replace(/[^\x20-\x7e]/g, "?")
    .trim()

/** The headers that a dead letter begins with. */
export const letterHeader = {
  code: "Objectlog-Code",
  reason: "Objectlog-Reason",
  subject: "Objectlog-Subject",
  seq: "Objectlog-Seq",
  timestamp: "Objectlog-Timestamp",
  id: "Nats-Msg-Id",
  part: "Objectlog-Part",
  headersSize: "Objectlog-Headers-Size",
} as const

/** Names a refused message. What is refused again has a prefix before this, and a part a suffix behind it. */
export const letterId = (subject: string, seq: number, timestamp: bigint): string => `${subject}-${seq}-${timestamp}`

const reasonHeaders = (delivery: OriginalRequest, reason: DeadLetter, suffix: string): Headers => [
  [
    letterHeader.id,
    `${delivery.outcomePrefix}${letterId(delivery.subject, delivery.seq, delivery.timestamp)}${suffix}`,
  ],
  [letterHeader.code, reason.code],
  [letterHeader.reason, headerSafe(reason.message)],
  [letterHeader.subject, delivery.subject],
  [letterHeader.seq, String(delivery.seq)],
  [letterHeader.timestamp, String(delivery.timestamp)],
]

/** Bytes of a header block, whose texts have a character for each byte; the server counts them as part of the message. */
const blockBytes = (headers: Headers): number =>
  headers.reduce((sum, [name, value]) => sum + name.length + value.length + 4, 32)

/** The messages that keep a refused one: one, or several parts. */
export const deadLetterMessages = (
  deadTopic: string,
  delivery: OriginalRequest,
  reason: DeadLetter,
  maxPayload: number,
): ReadonlyArray<Message> => {
  const subject = `${deadTopic}.${delivery.subject}`
  const original = delivery.headers()
  const { payload } = delivery
  const all: Headers = [...reasonHeaders(delivery, reason, ""), ...original.map(kept)]
  if (payload.byteLength + blockBytes(all) <= maxPayload) {
    return [{ subject, payload, headers: blockText(all), copy: undefined }]
  }
  const values = Map.groupBy(original, ([name]) => name)
  const block = Buffer.from(JSON.stringify([...values].map(([name, all]) => [name, all.map(([, value]) => value)])))
  const whole = Buffer.concat([block, payload])
  const partBytes = maxPayload - partOverhead
  const count = Math.ceil(whole.byteLength / partBytes)
  return Array.from({ length: count }, (_, i) => {
    const headers = blockText([
      ...reasonHeaders(delivery, reason, `-${i + 1}`),
      [letterHeader.part, `${i + 1}/${count}`],
      [letterHeader.headersSize, String(block.byteLength)],
    ])
    return { subject, payload: whole.subarray(i * partBytes, (i + 1) * partBytes), headers, copy: undefined }
  })
}
