/** What the property tests of the domain draw from. */
import { Arbitrary, Schema } from "effect"
import { max, type ObjectId } from "../../src/contract/ObjectId.ts"

export const int = (minimum: number, maximum: number): Arbitrary.Arbitrary<number> =>
  Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum, maximum })))

export const pick = <A>(values: ReadonlyArray<A>): Arbitrary.Arbitrary<A> =>
  Arbitrary.map(int(0, values.length - 1), (index) => values[index]!)

/** Every width from 0 to 64 bits is as likely, so that small ids and those near the limit both come up. */
export const id: Arbitrary.Arbitrary<ObjectId> = Arbitrary.map(
  Arbitrary.all([int(0, 0xffff_ffff), int(0, 0xffff_ffff), int(0, 64), int(0, 3)]),
  ([high, low, bits, edge]) => {
    const value = BigInt.asUintN(bits, (BigInt(high) << 32n) | BigInt(low))
    return (edge === 0 ? max - BigInt.asUintN(8, value) : value) as ObjectId
  },
)

/** Code units that JSON, UTF-8 or PostgreSQL treat specially. */
const special = Array.from("\u0000\u0001\u001f\u007f\"\\/{}[]:,'\n\r\t \u2028\ufeff\uffff")
const surrogates = ["\ud800", "\udbff", "\udc00", "\udfff", "\ud83d\ude00"]

/** Any sequence of UTF-16 code units: lone surrogates and U+0000 included. */
export const text: Arbitrary.Arbitrary<string> = Arbitrary.map(
  Arbitrary.array(Arbitrary.all([int(0, 5), int(0, 0xffff)]), { maxLength: 24 }),
  (units) =>
    units
      .map(([kind, unit]) =>
        kind === 0
          ? special[unit % special.length]
          : kind === 1
            ? surrogates[unit % surrogates.length]
            : String.fromCharCode(kind < 4 ? 32 + (unit % 95) : unit),
      )
      .join(""),
)
