/** How one variable of the environment is read; what a wrong value leads to. */
import { Config, Effect, FileSystem, Option, Redacted, Schema } from "effect"

export class ConfigInvalid extends Schema.TaggedError<ConfigInvalid>()("ConfigInvalid", {
  variable: Schema.String,
  /** As given; `<redacted>` where it may hold a secret. */
  value: Schema.String,
  allowed: Schema.String,
}) {
  override get message(): string {
    return `${this.variable}: expected ${this.allowed}, got ${JSON.stringify(this.value)}`
  }
}

/** The value; `undefined` where it is not set, or empty. */
export const given = (variable: string): Effect.Effect<string | undefined, ConfigInvalid> =>
  Config.option(Config.String(variable)).pipe(
    Effect.map(Option.getOrUndefined),
    Effect.mapError(() => new ConfigInvalid({ variable, value: "", allowed: "a text" })),
  )

export const parsed = <A>(
  variable: string,
  fallback: A,
  allowed: string,
  parse: (value: string) => A | undefined,
): Effect.Effect<A, ConfigInvalid> =>
  Effect.flatMap(given(variable), (value) => {
    if (value === undefined) return Effect.succeed(fallback)
    const result = parse(value.trim())
    return result === undefined ? Effect.fail(new ConfigInvalid({ variable, value, allowed })) : Effect.succeed(result)
  })

export const integer = (minimum: number, maximum: number) => (value: string) => {
  const number = /^\d{1,9}$/.test(value) ? Number(value) : Number.NaN
  return number >= minimum && number <= maximum ? number : undefined
}

/** `VAR`, or the content of the file that `VAR_FILE` names, without its final newline. */
export const secret = Effect.fnUntraced(function* (variable: string, fallback: string) {
  const direct = yield* given(variable)
  const file = yield* given(`${variable}_FILE`)
  if (direct !== undefined && file !== undefined) {
    return yield* new ConfigInvalid({
      variable: `${variable}_FILE`,
      value: file,
      allowed: `only one of ${variable} and ${variable}_FILE`,
    })
  }
  if (file === undefined) return Redacted.make(direct ?? fallback)
  const fs = yield* FileSystem.FileSystem
  const content = yield* fs
    .readFileString(file)
    .pipe(
      Effect.mapError(
        () => new ConfigInvalid({ variable: `${variable}_FILE`, value: file, allowed: "a readable file" }),
      ),
    )
  return Redacted.make(content.replace(/\r?\n$/, ""))
})

/**
 * An item of a list as an error shows it. Where the list holds credentials only its place is shown: a password may
 * contain the comma or the @ that would tell its end.
 */
export const shownItem = (items: ReadonlyArray<string>, index: number): string =>
  items.some((item) => /@|password/i.test(item)) ? `<redacted>, item ${index + 1}` : items[index]!.trim()
