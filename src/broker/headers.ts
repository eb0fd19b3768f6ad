/**
 * Message headers, read and written without the client library's `MsgHdrs`.
 *
 * That one throws on a name that it holds for invalid, while the server stores any: one such message would end a worker.
 * It also validates and canonicalises every name, which costs more than the rest of publishing.
 */
import type { Msg, MsgHdrs } from "@nats-io/transport-node"

/** Names and values in the order in which they were sent; a name may come more than once. */
export type Headers = ReadonlyArray<readonly [name: string, value: string]>

/** The header block of a message as text, `""` if it has none. `replyLength` is the length of its reply subject. */
export const headerText = (message: Msg, replyLength: number): string => {
  const { data } = message
  // A message has it, though the type does not say so.
  const sized = message as Msg & { size(): number }
  // The size counts subject, reply, headers and payload; the headers lie right before the payload.
  const size = sized.size() - Buffer.byteLength(message.subject) - replyLength - data.byteLength
  return size <= 0 ? "" : Buffer.from(data.buffer, data.byteOffset - size, size).toString()
}

/** The first value of a name, matched to the letter. */
export const firstHeader = (text: string, name: string): string | undefined => {
  const at = text.indexOf(`\r\n${name}:`)
  if (at < 0) return undefined
  const start = at + name.length + 3
  const end = text.indexOf("\r\n", start)
  return text.slice(start, end < 0 ? text.length : end).trim()
}

export const parseHeaders = (text: string): Headers =>
  text
    .split("\r\n")
    .slice(1)
    .flatMap((line) => {
      const at = line.indexOf(":")
      return at < 0 ? [] : [[line.slice(0, at), line.slice(at + 1).trim()] as const]
    })

/** A header block that is written as it is. */
class RawHeaders {
  readonly #bytes: Uint8Array

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
  }

  encode(): Uint8Array {
    return this.#bytes
  }
}

/** Encodes headers for `publish`, which calls `encode` and nothing else. Line breaks must not occur in them. */
export const encodeHeaders = (headers: Headers): MsgHdrs => {
  let text = "NATS/1.0\r\n"
  for (const [name, value] of headers) text += `${name}: ${value}\r\n`
  return new RawHeaders(Buffer.from(`${text}\r\n`)) as unknown as MsgHdrs
}
