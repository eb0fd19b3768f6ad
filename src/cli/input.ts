/** Standard input as commands read it. */
import { Effect, Schema, Stdio, Stream } from "effect"
import { fstatSync } from "node:fs"
import { reasonText } from "../embedded/systemError.ts"

/** Standard input can't be used as it is. */
export class InputInvalid extends Schema.TaggedError<InputInvalid>()("InputInvalid", { reason: Schema.String }) {
  override get message(): string {
    return `standard input: ${this.reason}`
  }
}

/** Node takes what it can't read, such as a folder, for an empty input. */
const unreadable = (): string | undefined => {
  const found = fstatSync(0)
  if (found.isDirectory()) return "is a folder"
  return found.isFile() || found.isFIFO() || found.isSocket() || found.isCharacterDevice()
    ? undefined
    : "is neither a file nor a pipe"
}

/** Its bytes. */
export const standardInput = Stream.unwrap(
  Effect.gen(function* () {
    const stdio = yield* Stdio.Stdio
    const reason = unreadable()
    if (reason !== undefined) return yield* new InputInvalid({ reason })
    return Stream.mapError(stdio.stdin, (error) => new InputInvalid({ reason: reasonText(error) }))
  }),
)

/** No server takes a message that is longer; so long a line would only fill the memory. */
const lineMax = 64 * 1024 * 1024

/**
 * The lines of a byte stream, each when it is complete. Only `\n` ends a line: what was sent is what comes back. A final
 * `\n` ends the last line and adds none.
 */
export const lines = <E, R>(bytes: Stream.Stream<Uint8Array, E, R>): Stream.Stream<string, E | InputInvalid, R> =>
  Stream.suspend(() => {
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
    let held: Array<string> = []
    let heldLength = 0
    let number = 1
    const take = (chunk: Uint8Array | undefined): Effect.Effect<ReadonlyArray<string>, InputInvalid> => {
      let text: string
      try {
        text = chunk === undefined ? decoder.decode() : decoder.decode(chunk, { stream: true })
      } catch {
        return Effect.fail(new InputInvalid({ reason: `bytes at or after line ${number} are not UTF-8` }))
      }
      const parts = text.split("\n")
      const rest = parts.pop()!
      if (parts.length > 0) {
        parts[0] = held.join("") + parts[0]!
        held = []
        heldLength = 0
        number += parts.length
      }
      if (rest !== "") held.push(rest)
      heldLength += rest.length
      if (heldLength > lineMax) return Effect.fail(new InputInvalid({ reason: `line ${number} has no end` }))
      if (chunk === undefined && heldLength > 0) parts.push(held.join(""))
      return Effect.succeed(parts)
    }
    return bytes.pipe(
      Stream.mapEffect(take),
      Stream.concat(Stream.fromEffect(Effect.suspend(() => take(undefined)))),
      Stream.flatMap((parts) => Stream.fromIterable(parts)),
    )
  })
