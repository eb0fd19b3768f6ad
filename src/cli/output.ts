/** All that commands print: results to standard output, all else, in lines, to standard error. */
import { Console, Effect, Schema, Stdio, Stream } from "effect"
import { codeOf, reasonText } from "../embedded/systemError.ts"
import { messageLine, messageLines } from "./terminal.ts"

/** Standard output does not take what is written: a full disk, for example. */
export class OutputFailed extends Schema.TaggedError<OutputFailed>()("OutputFailed", { reason: Schema.String }) {
  override get message(): string {
    return `standard output: ${this.reason}`
  }
}

/** Whoever was to read it is gone: a pipe that was closed, or a terminal. He has read enough, and that is no failure. */
const isReaderGone = (error: unknown): boolean => ["EPIPE", "EIO", "ERR_STREAM_DESTROYED"].includes(codeOf(error) ?? "")

/** Writes to standard output and waits while it is full; `false` where nobody reads it any more. */
export const print = Effect.fnUntraced(function* (text: string | Uint8Array) {
  const stdio = yield* Stdio.Stdio
  return yield* Stream.run(Stream.make(text), stdio.stdout()).pipe(
    Effect.as(true),
    Effect.catch((error) =>
      isReaderGone(error) ? Effect.succeed(false) : Effect.fail(new OutputFailed({ reason: reasonText(error) })),
    ),
  )
})

/** Prints texts until there are no more, or nobody reads them. */
export const printAll = <E, R>(texts: Stream.Stream<string | Uint8Array, E, R>) =>
  texts.pipe(
    Stream.mapEffect(print),
    Stream.takeWhile((read) => read),
    Stream.runDrain,
  )

/** Prints a line of ours that may cite text from outside. */
export const printLine = Effect.fnUntraced(function* (line: string) {
  const stdio = yield* Stdio.Stdio
  yield* print(`${messageLine(line, yield* stdio.stdoutIsTerminal)}\n`)
})

/** The same for a service, which works on though nobody can read what it says of itself. */
export const announce = (line: string) => Effect.ignore(printLine(line))

/** A line to standard error that may cite text from outside. */
export const tell = Effect.fnUntraced(function* (line: string) {
  const stdio = yield* Stdio.Stdio
  yield* Console.error(messageLine(line, yield* stdio.stderrIsTerminal))
})

export const complain = (problem: string) => tell(`objectlog: ${problem}`)

/** The same at the end of the process, when no effect runs any more. A stack keeps its lines. */
export const lastWords = (problem: string): void => {
  process.stderr.write(`${messageLines(`objectlog: ${problem}`, process.stderr.isTTY)}\n`)
}

/** Has a reader that ends, or a disk that is full, end nothing but the output. To be called once, by the program. */
export const outliveReaders = (): void => {
  // Nobody is left who could be told.
  process.stderr.on("error", () => undefined)
  // Said here, since who prints without waiting, as the help does, does not hear of it.
  process.stdout.on("error", (error) => {
    if (isReaderGone(error)) return
    if (process.exitCode !== 1) lastWords(new OutputFailed({ reason: reasonText(error) }).message)
    process.exitCode = 1
  })
}
