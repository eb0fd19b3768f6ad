/** Runs a program to its end, for what it does. */
import { Effect, Schema } from "effect"
import { execFile } from "node:child_process"
import { reasonText } from "./systemError.ts"
import type { Account } from "./serverProcess.ts"

/** A program could not be run, or ended with another code than 0. */
export class ProgramFailed extends Schema.TaggedError<ProgramFailed>()("ProgramFailed", {
  command: Schema.String,
  /** What it said at last, or why it could not be run. */
  problem: Schema.String,
}) {}

/** Of what a program says the end tells most; so many characters of it make a line that is still read. */
const problemMax = 600

export const runProgram = (
  command: string,
  args: ReadonlyArray<string>,
  { account, cwd = "/" }: { readonly account?: Account | undefined; readonly cwd?: string } = {},
) =>
  Effect.callback<void, ProgramFailed>((resume) => {
    const child = execFile(command, args, { ...account, cwd }, (error, _stdout, stderr) => {
      if (error === null) return resume(Effect.void)
      const said = stderr.trim().split("\n").join(" | ").slice(-problemMax)
      resume(Effect.fail(new ProgramFailed({ command, problem: said === "" ? reasonText(error) : said })))
    })
    return Effect.sync(() => child.kill("SIGKILL"))
  })
