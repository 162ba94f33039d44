// SPDX-License-Identifier: Apache-2.0

//! A macro for streams that modify only the bytes read.

/// Implements `AsyncWrite` for `Type` or `Type<I>` by delegation to the stream in a field.
macro_rules! writes_to_field {
    ($type:ident $(<$io:ident>)?, $field:ident) => {
        impl $(<$io: tokio::io::AsyncWrite + Unpin>)? tokio::io::AsyncWrite for $type $(<$io>)? {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                tokio::io::AsyncWrite::poll_write(std::pin::Pin::new(&mut self.$field), context, bytes)
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
                slices: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                let field = std::pin::Pin::new(&mut self.$field);
                tokio::io::AsyncWrite::poll_write_vectored(field, context, slices)
            }

            fn is_write_vectored(&self) -> bool {
                tokio::io::AsyncWrite::is_write_vectored(&self.$field)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                tokio::io::AsyncWrite::poll_flush(std::pin::Pin::new(&mut self.$field), context)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                tokio::io::AsyncWrite::poll_shutdown(std::pin::Pin::new(&mut self.$field), context)
            }
        }
    };
}

pub(crate) use writes_to_field;
