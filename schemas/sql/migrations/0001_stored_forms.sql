-- Compact forms of CIDs and TIDs, and back to text. The writer has the same functions in Python (connectors/postgres/stored_forms.py).
create schema if not exists sluice;

-- The stored form of a CID's bytes: of a DAG-CBOR CID, which almost every record has, the 32 bytes of the hash; else the bytes.
-- Other bytes that are 32 have \xff before them, which no CID begins with.
create function sluice.cid_stored(raw bytea) returns bytea language sql immutable strict parallel safe as $$
    select case when length(raw) = 36 and substr(raw, 1, 4) = '\x01711220' then substr(raw, 5)
                when length(raw) = 32 then '\xff'::bytea || raw
                else raw end
$$;

create function sluice.cid_raw(stored bytea) returns bytea language sql immutable strict parallel safe as $$
    select case when length(stored) = 32 then '\x01711220'::bytea || stored
                when substr(stored, 1, 1) = '\xff' then substr(stored, 2)
                else stored end
$$;

-- Text to stored form. Text that is not in the canonical form of a CID is kept as a zero byte, which no CID begins with, and the text.
create function sluice.cid_bytes(cid text) returns bytea language plpgsql immutable strict parallel safe as $$
declare
    base32 constant text := 'abcdefghijklmnopqrstuvwxyz234567';
    base58 constant text := '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz';
    found bytea := '';
    digits numeric := 0;
    bits bigint;
begin
    if cid ~ '^b[a-z2-7]{7,}$' then
        for at in 2..length(cid) by 8 loop
            bits := 0;
            for n in at..at + 7 loop
                bits := bits << 5 | greatest(strpos(base32, substr(cid, n, 1)) - 1, 0);
            end loop;
            found := found || substr(int8send(bits), 4);
        end loop;
        found := substr(found, 1, (length(cid) - 1) * 5 / 8);
    elsif cid ~ '^Qm[1-9A-HJ-NP-Za-km-z]{44}$' then
        for at in 1..46 loop
            digits := digits * 58 + strpos(base58, substr(cid, at, 1)) - 1;
        end loop;
        for at in 1..34 loop
            found := set_byte('\x00', 0, mod(digits, 256)::integer) || found;
            digits := div(digits, 256);
        end loop;
    end if;
    if substr(found, 1, case when cid ~ '^b' then 1 else 2 end) in ('\x01', '\x1220')
       and sluice.cid_text(sluice.cid_stored(found)) = cid then
        return sluice.cid_stored(found);
    end if;
    return sluice.cid_stored('\x00'::bytea || convert_to(cid, 'UTF8'));
end $$;

-- Two letters of base 32 at a time, from a table of all pairs.
do $do$
declare
    base32 constant text := 'abcdefghijklmnopqrstuvwxyz234567';
    pairs text;
begin
    select string_agg(substr(base32, n / 32 + 1, 1) || substr(base32, n % 32 + 1, 1), '' order by n) into pairs
    from generate_series(0, 1023) n;
    execute format($f$
        create function sluice.cid_text(stored bytea) returns text language plpgsql immutable strict parallel safe as $$
        declare
            cid constant bytea := case when length(stored) = 32 then '\x01711220'::bytea || stored
                                       when substr(stored, 1, 1) = '\xff' then substr(stored, 2)
                                       else stored end;  -- sluice.cid_raw, without a call
            size constant integer := length(cid);
            padded constant bytea := cid || '\x00000000';
            found bytea := '';
            bits bigint;
        begin
            if size = 0 or get_byte(cid, 0) = 0 then
                return convert_from(substr(cid, 2), 'UTF8');
            elsif size = 34 and get_byte(cid, 0) = 18 then
                return sluice.base58(cid);  -- version 0
            end if;
            for at in 0..size - 1 by 5 loop
                bits := (get_byte(padded, at)::bigint << 32) + (get_byte(padded, at + 1)::bigint << 24)
                        + (get_byte(padded, at + 2) << 16) + (get_byte(padded, at + 3) << 8) + get_byte(padded, at + 4);
                found := found || substr(%1$L::bytea, (bits >> 29 & 2046)::integer + 1, 2)
                               || substr(%1$L::bytea, (bits >> 19 & 2046)::integer + 1, 2)
                               || substr(%1$L::bytea, (bits >> 9 & 2046)::integer + 1, 2)
                               || substr(%1$L::bytea, (bits << 1 & 2046)::integer + 1, 2);
            end loop;
            return 'b' || convert_from(substr(found, 1, (size * 8 + 4) / 5), 'UTF8');
        end $$
    $f$, pairs);
end $do$;

create function sluice.base58(value bytea) returns text language plpgsql immutable strict parallel safe as $$
declare
    base58 constant text := '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz';
    found text := '';
    digits numeric := 0;
begin
    for at in 0..length(value) - 1 loop
        digits := digits * 256 + get_byte(value, at);
    end loop;
    while digits > 0 loop
        found := substr(base58, mod(digits, 58)::integer + 1, 1) || found;
        digits := div(digits, 58);
    end loop;
    return found;
end $$;

-- A TID as its number: 13 digits of base 32, whose highest bit is zero. The order of numbers is that of the texts. Null: no TID.
create function sluice.tid_number(tid text) returns bigint language sql immutable strict parallel safe as $$
    select case when tid ~ '^[2-7a-j][2-7a-z]{12}$' then (
        select sum((strpos('234567abcdefghijklmnopqrstuvwxyz', substr(tid, n, 1)) - 1)::bigint << (65 - 5 * n))::bigint
        from generate_series(1, 13) n
    ) end
$$;

create function sluice.tid_text(tid bigint) returns text language sql immutable strict parallel safe as $$
    select substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 60 & 15)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 55 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 50 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 45 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 40 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 35 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 30 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 25 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 20 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 15 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 10 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid >> 5 & 31)::integer + 1, 1)
        || substr('234567abcdefghijklmnopqrstuvwxyz', (tid & 31)::integer + 1, 1)
$$;

-- A time as the network writes it.
create function sluice.time_text(at timestamptz) returns text language sql stable strict parallel safe as $$
    select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;
