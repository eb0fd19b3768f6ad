/**
 * Message headers, read and written without the client library's `MsgHdrs`.
 *
 * That one throws on a name that it holds for invalid, while the server stores any: one such message would end a worker.
 * It also validates and canonicalises every name, which costs more than the rest of publishing.
 *
 * Here a header is a text with one character for each byte (Latin-1), since the server takes any bytes and a dead letter
 * has to give them back. `headerValue` reads such a text as the UTF-8 that it usually is.
 */
import type { Msg } from "@nats-io/transport-node"
import { isUtf8 } from "node:buffer"

type Header = readonly [name: string, value: string]

/** Names and values in the order in which they were sent; a name may come more than once. */
export type Headers = ReadonlyArray<Header>

declare const written: unique symbol

/** A block as `blockText` wrote it: no other is sent. */
export type HeaderBlock = string & { readonly [written]: true }

/** The header block of a message as text, `""` if it has none. `replyLength` is the length of its reply subject. */
export const headerText = (message: Msg, replyLength: number): string => {
  const { data } = message
  // A message has it, though the type does not say so.
  const sized = message as Msg & { size(): number }
  // The size counts subject, reply, headers and payload; the headers lie right before the payload.
  const size = sized.size() - Buffer.byteLength(message.subject) - replyLength - data.byteLength
  return size <= 0 ? "" : Buffer.from(data.buffer, data.byteOffset - size, size).toString("latin1")
}

const isBlank = (code: number) => code === 0x20 || code === 0x09

/**
 * Spaces and tabs around a value are not part of it. `trim` would also take bytes of characters, and a regular expression
 * needs quadratic time for a value of many spaces.
 */
const trimmed = (value: string): string => {
  let start = 0
  let end = value.length
  while (start < end && isBlank(value.charCodeAt(start))) start++
  while (end > start && isBlank(value.charCodeAt(end - 1))) end--
  return value.slice(start, end)
}

/**
 * A value as text. Where it is not UTF-8 each byte beyond ASCII becomes a lone surrogate (U+DC80 … U+DCFF), so that
 * different bytes stay different and the text is seen to be ill-formed.
 */
export const headerValue = (value: string): string => {
  if (!/[\x80-\xff]/.test(value)) return value
  const bytes = Buffer.from(value, "latin1")
  if (isUtf8(bytes)) return bytes.toString()
  return value.replace(/[\x80-\xff]/g, (character) => String.fromCharCode(0xdc00 + character.charCodeAt(0)))
}

/** The first value of a name, matched to the letter. */
export const firstHeader = (text: string, name: string): string | undefined => {
  const at = text.indexOf(`\r\n${name}:`)
  if (at < 0) return undefined
  const start = at + name.length + 3
  const end = text.indexOf("\r\n", start)
  return trimmed(text.slice(start, end < 0 ? text.length : end))
}

export const parseHeaders = (text: string): Headers =>
  text
    .split("\r\n")
    .slice(1)
    .flatMap((line) => {
      const at = line.indexOf(":")
      return at < 0 ? [] : [[line.slice(0, at), trimmed(line.slice(at + 1))] as const]
    })

/** Visible ASCII but for the colon, which ends it. */
const writableName = /^[!-9;-~]+$/

/** Visible ASCII: most values, and quickly seen. */
const plainValue = /^[!-~]+$/

/** Bytes without a line end, and without blanks around them, which are not part of a value. */
const writableValue = /^(?:[^\t\n\r \u0100-\uffff](?:[^\n\r\u0100-\uffff]*[^\t\n\r \u0100-\uffff])?)?$/

const isWritable = (name: string, value: string): boolean =>
  writableName.test(name) && (plainValue.test(value) || writableValue.test(value))

/**
 * A header block as text, as `parseHeaders`, `firstHeader` and every client library read it. The one place where headers are
 * written: what could be taken for something else than this name with this value throws.
 */
export const blockText = (headers: Headers): HeaderBlock => {
  let text = "NATS/1.0\r\n"
  for (const [name, value] of headers) {
    if (!isWritable(name, value)) {
      throw new Error(`the header ${JSON.stringify(name.slice(0, 60))} can't be written as it is`)
    }
    text += `${name}: ${value}\r\n`
  }
  return `${text}\r\n` as HeaderBlock
}

/** The block of a message whose only header is its id for the broker's deduplication: one for each event, so at less cost. */
export const idBlock = (messageId: string): HeaderBlock =>
  plainValue.test(messageId)
    ? (`NATS/1.0\r\nNats-Msg-Id: ${messageId}\r\n\r\n` as HeaderBlock)
    : blockText([["Nats-Msg-Id", messageId]])

/** Whether a header can be written such that all read it alike. Libraries trim more than blanks, of what they read as UTF-8. */
export const isPlain = ([name, value]: Header): boolean => {
  if (!isWritable(name, value)) return false
  const text = Buffer.from(value, "latin1").toString()
  return text.trim() === text
}
