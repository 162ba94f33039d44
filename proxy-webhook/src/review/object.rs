// SPDX-License-Identifier: Apache-2.0

//! Reads JSON objects field by field; another JSON type in place of an object is an error.
//!
//! The implementation that serde derives for a struct also accepts an array of its fields, and rejects duplicate keys.
//! Here an array is an error, and the last of several equal keys counts, as in Go and in libraries for JSON patches.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The fields of an object that are read.
pub trait Fields<'de>: Default {
    /// The name of the object, for messages.
    const WHAT: &'static str;

    /// Reads the value of `key` from `map` if it is one of the fields, and returns whether it is.
    ///
    /// # Errors
    /// If the value has another type.
    fn read<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// An object of which [`Fields`] are read and the others skipped.
#[derive(Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Fields<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Fields<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object, {}", T::WHAT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = T::default();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            if !fields.read(&key.0, &mut map)? {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Object(fields))
    }
}

/// A list that is folded into a value as it is read.
pub trait Fold<'de>: Default {
    /// The name of its elements, for messages.
    const WHAT: &'static str;
    /// One element.
    type Element: Deserialize<'de>;

    /// Takes the next element.
    fn take(&mut self, element: Self::Element);
}

/// A list read by [`Fold`].
#[derive(Debug, Default)]
pub struct List<T>(pub T);

impl<'de, T: Fold<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Fold<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = List<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a list of {}", T::WHAT)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = T::default();
        while let Some(element) = seq.next_element()? {
            list.take(element);
        }
        Ok(List(list))
    }
}

/// A string, borrowed from the input if it has no escapes.
#[derive(Debug, Default)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}
