/**
 * What `Incoming` and `Outgoing` rely on of the client library's inside. A version that lacks a part of it is told from one
 * that has it when the connection is made, and not by what goes wrong later.
 */
import type { NatsConnection } from "@nats-io/transport-node"

export interface Parser {
  parse(bytes: Uint8Array): void
}

export interface Inside {
  /** Anew for each connection to a server. */
  parser: Parser
  /** Takes finished pieces of the protocol, in order with the library's own. */
  readonly sendCommand: (command: Uint8Array, ...more: ReadonlyArray<Uint8Array>) => void
}

export const insideOf = (connection: NatsConnection): Inside =>
  (connection as unknown as { readonly protocol: Inside }).protocol

/** What is not as it should be; `undefined` if all is. */
export const insideProblem = (connection: NatsConnection): string | undefined => {
  const inside: Partial<Inside> | undefined = insideOf(connection)
  const missing = [
    ...(typeof inside?.parser?.parse === "function" ? [] : ["protocol.parser.parse"]),
    ...(typeof inside?.sendCommand === "function" ? [] : ["protocol.sendCommand"]),
  ]
  return missing.length === 0
    ? undefined
    : `the NATS client library has no ${missing.join(" and no ")}, which this program relies on: install the version that package-lock.json names`
}
