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
import { headers, type MsgHdrs } from "@nats-io/transport-node"
import type { DeadLetter } from "./Broker.ts"
import type { NatsDelivery } from "./deliveries.ts"
import type { Message } from "./publish.ts"

/** Longest reason in a header, in characters. */
const reasonMax = 512

/** Room left for the added headers of a part. */
const partOverhead = 2_048

const headerSafe = (text: string): string => text.slice(0, reasonMax).replace(/[^\x20-\x7e]/g, "?")

const reasonHeaders = (delivery: NatsDelivery, reason: DeadLetter, suffix: string): MsgHdrs => {
  const all = headers()
  all.set("Objectlog-Code", reason.code)
  all.set("Objectlog-Reason", headerSafe(reason.message))
  all.set("Objectlog-Subject", delivery.subject)
  all.set("Objectlog-Seq", String(delivery.seq))
  all.set("Objectlog-Timestamp", String(delivery.timestamp))
  all.set("Nats-Msg-Id", `${delivery.subject}-${delivery.seq}-${delivery.timestamp}${suffix}`)
  return all
}

/** The messages that keep a refused one: one, or several parts. */
export const deadLetterMessages = (
  deadTopic: string,
  delivery: NatsDelivery,
  reason: DeadLetter,
  maxPayload: number,
): ReadonlyArray<Message> => {
  const subject = `${deadTopic}.${delivery.subject}`
  const original = delivery.headers()
  const originalText = JSON.stringify(original)
  if (delivery.payload.byteLength + Buffer.byteLength(originalText) + partOverhead <= maxPayload) {
    const all = reasonHeaders(delivery, reason, "")
    for (const [name, values] of original) {
      const kept = /^nats-/i.test(name) ? `Original-${name}` : name
      for (const value of values) all.append(kept, value)
    }
    return [{ subject, payload: delivery.payload, headers: all, copyTo: undefined }]
  }
  const block = Buffer.from(originalText)
  const whole = Buffer.concat([block, delivery.payload])
  const partBytes = maxPayload - partOverhead
  const count = Math.ceil(whole.byteLength / partBytes)
  return Array.from({ length: count }, (_, i) => {
    const all = reasonHeaders(delivery, reason, `-${i + 1}`)
    all.set("Objectlog-Part", `${i + 1}/${count}`)
    all.set("Objectlog-Headers-Size", String(block.byteLength))
    return { subject, payload: whole.subarray(i * partBytes, (i + 1) * partBytes), headers: all, copyTo: undefined }
  })
}
