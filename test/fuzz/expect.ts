/** What must become of a message, decided by rules of its own and not by the code under test. */
import { createHash } from "node:crypto"
import type { Limits } from "../../src/contract/Request.ts"
import * as reference from "../contract/referenceJson.ts"
import type { Message } from "./messages.ts"

export const digest = (bytes: Uint8Array | string): string => createHash("sha1").update(bytes).digest("base64")

export interface Expected {
  readonly subject: "logs" | "query"
  readonly payloadKind: string
  readonly headersKind: string
  readonly verdict: reference.ReadVerdict
  /** Digest of the log, and the idempotency key, of an append that is to be stored. */
  readonly log: string
  readonly messageId: string | undefined
  /** Digests of what a dead letter must give back. */
  readonly payload: string
  readonly headers: string
}

/** The lines of a header block as names and values, byte for byte; the first line is the protocol's own. */
const linesOf = (block: Buffer): ReadonlyArray<readonly [name: Buffer, value: Buffer]> => {
  const all: Array<readonly [Buffer, Buffer]> = []
  let start = block.indexOf("\r\n")
  while (start >= 0) {
    const next = block.indexOf("\r\n", start + 2)
    const line = block.subarray(start + 2, next < 0 ? block.length : next)
    const colon = line.indexOf(":")
    if (colon >= 0) {
      let [from, to] = [colon + 1, line.length]
      while (from < to && (line[from] === 0x20 || line[from] === 0x09)) from++
      while (to > from && (line[to - 1] === 0x20 || line[to - 1] === 0x09)) to--
      all.push([line.subarray(0, colon), line.subarray(from, to)])
    }
    start = next
  }
  return all
}

/** Digest of headers, whatever the order of different names: that of one name's values counts. */
export const headersDigest = (headers: ReadonlyArray<readonly [name: string, value: string]>): string =>
  digest(
    JSON.stringify(
      headers
        .map(([name, value], at) => ({ name, value, at }))
        .sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.at - b.at))
        .map(({ name, value }) => [name, value]),
    ),
  )

type MessageId = { readonly valid: boolean; readonly text: string | undefined }

const messageIdOf = (lines: ReturnType<typeof linesOf>): MessageId => {
  const value = lines.find(([name]) => name.equals(Buffer.from("Nats-Msg-Id")))?.[1]
  if (value === undefined || value.length === 0) return { valid: true, text: undefined }
  if (value.length > 1_024 || value.includes(0)) return { valid: false, text: undefined }
  try {
    return { valid: true, text: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value) }
  } catch {
    return { valid: false, text: undefined }
  }
}

export const expect = (message: Message, limits: Limits): Expected => {
  const { block, headersKind, judged, payload, payloadKind, subject } = message
  const lines = block === undefined ? [] : linesOf(block)
  const id = messageIdOf(lines)
  const decoded = subject === "logs" ? reference.decodeAppend(judged, limits) : reference.decodeRead(judged, limits)
  const refusedForId = subject === "logs" && decoded.code === undefined && !id.valid
  return {
    subject,
    payloadKind,
    headersKind,
    verdict: refusedForId ? { ...decoded, code: "invalid_message" } : decoded,
    log: digest(JSON.stringify(decoded.log ?? null)),
    messageId: subject === "logs" ? id.text : undefined,
    payload: digest(payload),
    headers: headersDigest(lines.map(([name, value]) => [name.toString("latin1"), value.toString("latin1")] as const)),
  }
}
