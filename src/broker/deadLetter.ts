/**
 * Dead letters: the refused message with its payload, its headers and the reason, on `<dead topic>.<its subject>`.
 *
 * Added headers: `Objectlog-Code`, `Objectlog-Reason`, `Objectlog-Subject`, `Objectlog-Seq`, `Objectlog-Timestamp`
 * (nanoseconds). Original headers keep their names, but for those that the broker itself would act on: `Nats-X` becomes
 * `Original-Nats-X`.
 *
 * A message so large that it does not fit with the added headers is kept in parts, `Objectlog-Part: 1/2` and so on. Put
 * together they are a JSON array of [name, values] of the original headers, `Objectlog-Headers-Size` bytes of it, and then
 * the payload.
 */
import type { DeadLetter } from "./Broker.ts"
import type { NatsDelivery } from "./deliveries.ts"
import { encodeHeaders, type Headers } from "./headers.ts"
import type { Message } from "./publish.ts"

/** Longest reason in a header, in characters. */
const reasonMax = 512

/** Room left for the added headers of a part. */
const partOverhead = 2_048

const headerSafe = (text: string): string => text.slice(0, reasonMax).replace(/[^\x20-\x7e]/g, "?")

const reasonHeaders = (delivery: NatsDelivery, reason: DeadLetter, suffix: string): Headers => [
  ["Objectlog-Code", reason.code],
  ["Objectlog-Reason", headerSafe(reason.message)],
  ["Objectlog-Subject", delivery.subject],
  ["Objectlog-Seq", String(delivery.seq)],
  ["Objectlog-Timestamp", String(delivery.timestamp)],
  ["Nats-Msg-Id", `${delivery.subject}-${delivery.seq}-${delivery.timestamp}${suffix}`],
]

/** Bytes of a header block; the server counts them as part of the message. */
const blockBytes = (headers: Headers): number =>
  headers.reduce((sum, [name, value]) => sum + Buffer.byteLength(name) + Buffer.byteLength(value) + 4, 32)

/** The messages that keep a refused one: one, or several parts. */
export const deadLetterMessages = (
  deadTopic: string,
  delivery: NatsDelivery,
  reason: DeadLetter,
  maxPayload: number,
): ReadonlyArray<Message> => {
  const subject = `${deadTopic}.${delivery.subject}`
  const original = delivery.headers()
  const all: Headers = [
    ...reasonHeaders(delivery, reason, ""),
    ...original.map(([name, value]) => [/^nats-/i.test(name) ? `Original-${name}` : name, value] as const),
  ]
  if (delivery.payload.byteLength + blockBytes(all) <= maxPayload) {
    return [{ subject, payload: delivery.payload, headers: encodeHeaders(all), copy: undefined }]
  }
  const values = Map.groupBy(original, ([name]) => name)
  const block = Buffer.from(JSON.stringify([...values].map(([name, all]) => [name, all.map(([, value]) => value)])))
  const whole = Buffer.concat([block, delivery.payload])
  const partBytes = maxPayload - partOverhead
  const count = Math.ceil(whole.byteLength / partBytes)
  return Array.from({ length: count }, (_, i) => {
    const headers = encodeHeaders([
      ...reasonHeaders(delivery, reason, `-${i + 1}`),
      ["Objectlog-Part", `${i + 1}/${count}`],
      ["Objectlog-Headers-Size", String(block.byteLength)],
    ])
    return { subject, payload: whole.subarray(i * partBytes, (i + 1) * partBytes), headers, copy: undefined }
  })
}
