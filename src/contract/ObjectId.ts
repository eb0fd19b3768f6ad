/**
 * The name of an object: an unsigned 64-bit integer, exact over its whole range.
 *
 * On the wire it is a JSON number (or the same digits as a string); in memory a `bigint`; in PostgreSQL a `bigint`
 * that holds the same 64 bits as two's complement.
 */
import { Schema } from "effect"

export const max = 0xffff_ffff_ffff_ffffn

export const ObjectId = Schema.BigInt.check(Schema.isBetweenBigInt({ minimum: 0n, maximum: max })).pipe(
  Schema.brand("ObjectId"),
)
export type ObjectId = typeof ObjectId.Type

/** What an error text says is allowed. */
export const expected = `an unsigned 64-bit integer in decimal digits, 0 … ${max}`

/** Twenty digits are the longest that can be in range; leading zeros, signs, fractions and exponents are not digits. */
const canonical = /^(?:0|[1-9][0-9]{0,19})$/

/** Reads canonical decimal text; `undefined` for anything else, also for digits that are out of range. */
export const fromDecimal = (text: string): ObjectId | undefined => {
  if (!canonical.test(text)) return undefined
  const id = BigInt(text)
  return id <= max ? (id as ObjectId) : undefined
}

/** The `bigint` column value: the same 64 bits, signed. */
export const toColumn = (id: ObjectId): bigint => BigInt.asIntN(64, id)

export const fromColumn = (column: bigint): ObjectId => BigInt.asUintN(64, column) as ObjectId
