/** The headers of a request as they are kept beside what we add: in a dead letter, and where it was parked. */
import { type Headers, isPlain } from "../nats/headers.ts"

const encodedName = "Objectlog-Encoded"

/** Names that the broker or `unkept` would act on, and those that would be taken for one of them when they are read back. */
const renamed = /^(?:original-)*(?:nats-|objectlog-encoded$)/i

const encode = (text: string): string =>
  text.replace(/[^!-$&-9;-~]/g, (byte) => `%${byte.charCodeAt(0).toString(16).padStart(2, "0")}`)
const decode = (text: string): string =>
  text.replace(/%([\da-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))

/**
 * An original header as it is kept: byte for byte, but for a name that the broker would act on, `Nats-X`, which becomes
 * `Original-Nats-X`, and for one that would end its line, or that a client library refuses to read: that one is
 * `Objectlog-Encoded: <name>:<value>`, both with %XX for each byte that is no visible ASCII, `%` or `:`.
 */
export const kept = ([name, value]: Headers[number]): Headers[number] => {
  if (!isPlain([name, value])) return [encodedName, `${encode(name)}:${encode(value)}`]
  return [renamed.test(name) ? `Original-${name}` : name, value]
}

/** The original of a kept header. */
export const unkept = ([name, value]: Headers[number]): Headers[number] => {
  if (name === encodedName) {
    const at = value.indexOf(":")
    return at < 0 ? [name, value] : [decode(value.slice(0, at)), decode(value.slice(at + 1))]
  }
  return [name.startsWith("Original-") && renamed.test(name) ? name.slice("Original-".length) : name, value]
}
