//! Python's pickle format as far as checkpoints of PyTorch and of NumPy arrays need it. Nothing is ever imported or called:
//! a class or function is only a name, and what a checkpoint would build with it becomes the description of a tensor or an
//! array, an empty dictionary or an opaque value.
//!
//! All values live in one arena and refer to each other by index, so shared and even cyclic values are harmless, and
//! no input can exhaust the call stack.

use std::ops::Range;

use candle_core::{Result, bail};

/// Index of a value in [`Values`].
pub(crate) type Id = usize;

/// One unpickled value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number that fits.
    Int(i64),
    /// Anything that no checkpoint needs: floats, long integers, objects.
    Opaque,
    /// A string.
    Text(String),
    /// Bytes of the input; Python 2 wrote its strings so, therefore also the text of short ones.
    Bytes(Range<usize>, Option<String>),
    /// `text.encode("latin1")`: how Python 3 writes bytes in old protocols.
    Encoded(Id),
    /// A tuple, a list or a set.
    List(Vec<Id>),
    /// A dictionary in the order of insertion.
    Dict(Vec<(Id, Id)>),
    /// `module.name` of a class or function.
    Global(String),
    /// What PyTorch stores outside of the pickle: the tuple that describes it.
    Persistent(Id),
    /// `_rebuild_tensor_v2(storage, offset, size, stride, …)`: its arguments.
    Tensor(Vec<Id>),
    /// A NumPy array: the state that it is given, `(version, shape, type, Fortran order, data)`.
    Array(Option<Id>),
    /// `_frombuffer(data, type, shape, order)`: a NumPy array in protocol 5.
    Buffer(Vec<Id>),
    /// A NumPy element type: its name, and the state that it is given, `(version, byte order, …)`.
    ElementType(Id, Option<Id>),
    /// An object with its class; never built.
    Object(Id),
}

/// Every value of a pickle.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<Value>);

impl Values {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Value> {
        self.0.iter()
    }

    pub(crate) fn get(&self, id: Id) -> &Value {
        &self.0[id]
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) | Value::Bytes(_, Some(text)) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn int(&self, id: Id) -> Option<i64> {
        if let Value::Int(value) = self.get(id) { Some(*value) } else { None }
    }

    pub(crate) fn list(&self, id: Id) -> Option<&[Id]> {
        if let Value::List(items) = self.get(id) { Some(items) } else { None }
    }

    pub(crate) fn global(&self, id: Id) -> Option<&str> {
        if let Value::Global(name) = self.get(id) { Some(name) } else { None }
    }

    fn push(&mut self, value: Value) -> Id {
        self.0.push(value);
        self.0.len() - 1
    }
}

/// Read one pickle from the front of `bytes`: its values, the outermost one, and how many bytes it took.
///
/// # Errors
/// If it is cut off or uses an instruction that no checkpoint contains.
pub(crate) fn read(bytes: &[u8]) -> Result<(Values, Id, usize)> {
    let mut machine = Machine {
        input: bytes,
        at: 0,
        values: Values::default(),
        stack: vec![],
        marks: vec![],
        memo: vec![],
    };
    loop {
        let opcode = machine.byte()?;
        if opcode == b'.' {
            let root = machine.pop()?;
            return Ok((machine.values, root, machine.at));
        }
        machine.step(opcode)?;
    }
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    values: Values,
    stack: Vec<Id>,
    marks: Vec<usize>,
    /// Memo numbers are dense in practice; a sparse one is refused rather than allocated.
    memo: Vec<Option<Id>>,
}

impl<'a> Machine<'a> {
    /// Opcodes by `pickletools`; the name of each is at its arm.
    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // PROTO, FRAME: nothing to do with their arguments.
            0x80 => self.skip(1)?,
            0x95 => self.skip(8)?,
            // MARK, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'}' | b']' | b')' | 0x8f | b't' | 0x85..=0x87 | b'l' | b'd' | 0x91 => {
                self.container(opcode)?
            }
            b'a' | b'e' | b's' | b'u' | 0x90 => self.extend(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memoize(opcode)?,
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.push(Value::Global(name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let both = self
                    .values
                    .text(module)
                    .zip(self.values.text(name))
                    .map(|(m, n)| format!("{m}.{n}"));
                let Some(full) = both else { bail!("a class without a name") };
                self.push(Value::Global(full));
            }
            // REDUCE and NEWOBJ (callable, arguments), NEWOBJ_EX (… and keyword arguments): nothing is called.
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let value = self.rebuilt(callable, arguments);
                self.push(value);
            }
            0x92 => {
                let (_, _, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.push(Value::Object(class));
            }
            // BUILD: only the state of arrays and their types says something about weights.
            b'b' => {
                let (given, target) = (self.pop()?, self.top()?);
                if let Value::Array(state) | Value::ElementType(_, state) =
                    &mut self.values.0[target]
                {
                    *state = Some(given);
                }
            }
            // BINPERSID
            b'Q' => {
                let description = self.pop()?;
                self.push(Value::Persistent(description));
            }
            _ => self.atom(opcode)?,
        }
        Ok(())
    }

    /// `None`, truth values, numbers, strings and bytes.
    fn atom(&mut self, opcode: u8) -> Result<()> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            // BININT1, BININT2, BININT
            b'K' => Value::Int(self.byte()?.into()),
            b'M' => Value::Int(self.length(2)? as i64),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            // LONG1, LONG4
            0x8a => {
                let length = self.length(1)?;
                self.long(length)?
            }
            0x8b => {
                let length = self.length(4)?;
                self.long(length)?
            }
            // BINFLOAT
            b'G' => {
                self.skip(8)?;
                Value::Opaque
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            0x8c => self.text(1)?,
            b'X' => self.text(4)?,
            0x8d => self.text(8)?,
            // SHORT_BINBYTES and BINBYTES, with Python 2's SHORT_BINSTRING and BINSTRING; BINBYTES8, BYTEARRAY8
            b'C' | b'U' => self.bytes(1)?,
            b'B' | b'T' => self.bytes(4)?,
            0x8e | 0x96 => self.bytes(8)?,
            _ => bail!(
                "instruction 0x{opcode:02x} at byte {} is not one of a checkpoint",
                self.at - 1
            ),
        };
        self.push(value);
        Ok(())
    }

    /// Instructions that make a tuple, list, set or dictionary.
    fn container(&mut self, opcode: u8) -> Result<()> {
        let value = match opcode {
            b'}' => Value::Dict(vec![]),
            b']' | b')' | 0x8f => Value::List(vec![]),
            // TUPLE, LIST, FROZENSET
            b't' | b'l' | 0x91 => Value::List(self.pop_mark()?),
            // DICT
            b'd' => Value::Dict(pairs(&self.pop_mark()?)?),
            // TUPLE1, TUPLE2, TUPLE3
            _ => Value::List(self.pop_many(usize::from(opcode - 0x84))?),
        };
        self.push(value);
        Ok(())
    }

    /// Instructions that add to the list or dictionary below their arguments.
    fn extend(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b'a' => self.pop_many(1)?,
            b's' => self.pop_many(2)?,
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        match (&mut self.values.0[target], opcode) {
            (Value::Dict(entries), b's' | b'u') => entries.extend(pairs(&items)?),
            (Value::List(list), b'a' | b'e' | 0x90) => list.extend(items),
            // A subclass of list or dict: as opaque as before.
            (Value::Object(_) | Value::Opaque, _) => {}
            (other, _) => bail!("cannot add items to {other:?}"),
        }
        Ok(())
    }

    /// BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET.
    fn memoize(&mut self, opcode: u8) -> Result<()> {
        let number = match opcode {
            0x94 => self.memo.len(),
            b'q' | b'h' => self.length(1)?,
            _ => self.length(4)?,
        };
        if matches!(opcode, b'h' | b'j') {
            let Some(&Some(id)) = self.memo.get(number) else {
                bail!("memo {number} was never written")
            };
            self.stack.push(id);
            return Ok(());
        }
        // Every memo number takes at least one byte of input to write.
        if number > self.input.len() {
            bail!("memo {number} is out of range");
        }
        if self.memo.len() <= number {
            self.memo.resize(number + 1, None);
        }
        self.memo[number] = Some(self.top()?);
        Ok(())
    }

    /// What PyTorch's and NumPy's own functions stand for; anything else stays an object that is never built.
    fn rebuilt(&self, callable: Id, arguments: Id) -> Value {
        let arguments_list = self.values.list(arguments).unwrap_or_default();
        match (self.values.global(callable), arguments_list) {
            (Some("collections.OrderedDict" | "collections.defaultdict" | "builtins.dict"), _) => {
                Value::Dict(vec![])
            }
            (Some("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor"), list) => {
                Value::Tensor(list.to_vec())
            }
            (
                Some(
                    "torch._utils._rebuild_parameter"
                    | "torch._utils._rebuild_parameter_with_state",
                ),
                [data, ..],
            ) => self.values.get(*data).clone(),
            (
                Some("numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct"),
                _,
            ) => Value::Array(None),
            (Some("numpy.core.numeric._frombuffer" | "numpy._core.numeric._frombuffer"), list) => {
                Value::Buffer(list.to_vec())
            }
            (Some("numpy.dtype"), [name, ..]) => Value::ElementType(*name, None),
            (Some("_codecs.encode"), [text, ..]) => Value::Encoded(*text),
            // (function, class, arguments of the function, state)
            (Some("torch._tensor._rebuild_from_type_v2"), [function, _, inner, ..])
                if self.values.global(*function) == Some("torch._utils._rebuild_tensor_v2") =>
            {
                Value::Tensor(self.values.list(*inner).unwrap_or_default().to_vec())
            }
            _ => Value::Object(callable),
        }
    }

    fn push(&mut self, value: Value) {
        let id = self.values.push(value);
        self.stack.push(id);
    }

    fn top(&self) -> Result<Id> {
        let Some(&top) = self.stack.last() else { bail!("an empty stack") };
        Ok(top)
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        let Some(start) = self.stack.len().checked_sub(count) else { bail!("an empty stack") };
        Ok(self.stack.split_off(start))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let Some(mark) = self.marks.pop().filter(|&mark| mark <= self.stack.len()) else {
            bail!("no mark")
        };
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some(bytes) = self.input.get(self.at..).and_then(|rest| rest.get(..count)) else {
            bail!("it is cut off")
        };
        self.at += count;
        Ok(bytes)
    }

    fn skip(&mut self, count: usize) -> Result<()> {
        self.take(count).map(drop)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE]> {
        let mut array = [0; SIZE];
        array.copy_from_slice(self.take(SIZE)?);
        Ok(array)
    }

    /// An unsigned little-endian number of `width` bytes.
    fn length(&mut self, width: usize) -> Result<usize> {
        Ok(self.take(width)?.iter().rev().fold(0, |sum, &byte| (sum << 8) | usize::from(byte)))
    }

    fn text(&mut self, width: usize) -> Result<Value> {
        let length = self.length(width)?;
        Ok(Value::Text(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }

    fn bytes(&mut self, width: usize) -> Result<Value> {
        let length = self.length(width)?;
        let bytes = self.take(length)?;
        // Names are short; of data nobody wants the text.
        let text = (length < 256).then(|| str::from_utf8(bytes).ok().map(str::to_owned)).flatten();
        Ok(Value::Bytes(self.at - length..self.at, text))
    }

    /// A signed little-endian number of any length; longer ones than 64 bits are only ever seeds and magic numbers.
    fn long(&mut self, length: usize) -> Result<Value> {
        let bytes = self.take(length)?;
        if length > 8 {
            return Ok(Value::Opaque);
        }
        let sign = if bytes.last().is_some_and(|&last| last >= 0x80) { 0xff } else { 0 };
        let mut array = [sign; 8];
        array[..length].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(array)))
    }

    fn line(&mut self) -> Result<String> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            bail!("it is cut off")
        };
        self.at += length + 1;
        Ok(String::from_utf8_lossy(&rest[..length]).trim_end_matches('\r').to_owned())
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        bail!("a key without a value");
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_filled_after_it_was_memoized_is_one_value() {
        // {} memo 0, then 0["a"] = 5, and a tuple of the dictionary twice, the second time from the memo.
        let (values, root, used) =
            read(b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x05sh\x00\x86.rest").unwrap();
        let &[first, second] = values.list(root).unwrap() else { panic!("a pair") };
        assert_eq!((first, used), (second, 18));
        let Value::Dict(entries) = values.get(first) else { panic!("a dictionary") };
        assert_eq!((values.text(entries[0].0), values.int(entries[0].1)), (Some("a"), Some(5)));
    }

    #[test]
    fn calls_are_never_made() {
        // os.system("touch /tmp/x")
        let (values, root, _) =
            read(b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch /tmp/x\x85R.").unwrap();
        let Value::Object(class) = values.get(root) else { panic!("an object") };
        assert_eq!(values.global(*class), Some("os.system"));
    }

    #[test]
    fn damaged_input_is_an_error_and_never_a_panic() {
        let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x05X\x01\x00\x00\x00b\x8a\x02\xff\xffuh\x00\x86ccollections\nOrderedDict\n)R\x86.";
        assert!(read(whole).is_ok());
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut damaged = whole.to_vec();
                damaged[at] = byte;
                drop(read(&damaged));
            }
        }
    }

    #[test]
    fn negative_and_long_numbers() {
        let (values, root, _) = read(b"\x80\x02\x8a\x01\xfe.").unwrap();
        assert_eq!(values.int(root), Some(-2));
        let (values, root, _) = read(b"J\xff\xff\xff\xff.").unwrap();
        assert_eq!(values.int(root), Some(-1));
    }
}
